"""FUNIT: images of any class to one that is known from a few images only, none of them seen in training.

The activations of the original's discriminator work in place, and change what other layers read: where a block keeps
its width the shortcut is activated, and so are the features that are matched. The learning rates of the two networks
are exchanged there: that of the generator trains the discriminator.

Liu, Huang, Mallya, Karras, Aila, Lehtinen, Kautz. Few-Shot Unsupervised Image-to-Image Translation. ICCV 2019.
"""

from typing import Any

from torch import Tensor, nn

from . import _munit
from ._funit import Config, FewShot, GPPatchMcResDis
from ._munit import MLP, ContentEncoder, Decoder, StyleEncoder
from ._system import RMSprop

# fmt: off
PRESETS: dict[str, dict[str, Any]] = {
    "animals": dict(dis_num_classes=119),
    "tiny":    dict(dis_num_classes=4, new_size=70, crop_image_height=64, crop_image_width=64, gen_nf=8, gen_nf_mlp=16,
                    gen_latent_dim=8, gen_n_res_blks=1, dis_nf=8, dis_n_res_blks=6),
}
# fmt: on


class FewShotGen(nn.Module):
    def __init__(self, config: Config) -> None:
        super().__init__()
        blocks, down = config.gen_n_res_blks, config.gen_n_downs_content
        like = _munit.Config(gen_dim=config.gen_nf, gen_n_downsample=down, gen_n_res=blocks)
        self.enc_class_model = StyleEncoder(
            3, config.gen_nf, config.gen_latent_dim, config.gen_n_downs_class, pad="reflect", act="relu"
        )
        self.enc_content = ContentEncoder(like, 3)
        self.dec = Decoder(like, 3, "adain", upsampled="in")
        vectors = 4 * blocks * (config.gen_nf << down)
        self.mlp = MLP(config.gen_latent_dim, vectors, config.gen_nf_mlp, config.gen_n_mlp_blks, act="relu")

    def encode(self, images: Tensor) -> Tensor:
        return self.enc_content(images)

    def classify(self, images: Tensor) -> Tensor:
        return self.enc_class_model(images)

    def decode(self, content: Tensor, codes: Tensor) -> Tensor:
        return self.dec(content, self.mlp(codes))


class System(FewShot):
    """A generator and a discriminator; one discriminator step, then one generator step."""

    Config = Config
    PRESETS = PRESETS

    def __init__(self, config: Config) -> None:
        dis = GPPatchMcResDis(config.dis_nf, config.dis_n_res_blks, config.dis_num_classes, in_place=True)
        of_gen, of_dis = (RMSprop(lr, weight_decay=config.weight_decay) for lr in (config.lr_dis, config.lr_gen))
        super().__init__(config, FewShotGen(config), dis, of_gen, of_dis)
