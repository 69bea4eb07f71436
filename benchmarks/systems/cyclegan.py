"""CycleGAN with 9 blocks on images of 256x256 pixels."""

import plain_cyclegan as plain

from . import Row

ROWS = [
    Row(
        system="cyclegan",
        preset="horse2zebra",
        size=(256, 256),
        batch=1,
        networks=plain.networks,
        translate=lambda nets, config, batch: nets["G_A"](batch["a"]),
        loss=plain.generator_loss,
        step=plain.train_step,
        options={"pool_size": 0},
        small={"ngf": 16, "ndf": 16, "netG": "resnet_6blocks"},
    )
]
