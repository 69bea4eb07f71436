"""Kinds of data, one module each; the file name is the kind's, and nothing is registered. A module has

SHOWN     names of what a sample grid shows of a batch and of its translation, in columns from left to right
TAKES     names of what pipelines take of a batch, the first one without its name; of single inputs only
Options   how files become items, as far as users choose it; a dataclass, part of the command line
Settings  Options, and what the system decides; `Settings.of(system, options)`: fields are found by name in the system's
          config and in its `data_settings`
folder    (root, phase, settings, seed=0, train=False) -> Items; FileNotFoundError where there is nothing of that phase
Inputs    what to translate; a dataclass, part of the command line; `batches(system, size)` yields batches with "path"
"""
