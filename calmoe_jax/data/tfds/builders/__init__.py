"""Builders of data sets for tensorflow-datasets, which prepare without TensorFlow.

Those of PACS, Office-Home and WILDS CivilComments are ours: tensorflow-datasets has none. That of
DomainNet is ours as well: with its lists and classes, but at 64x64 and under the name
`domainnet64`. The others are its own (`cifar10`, `cifar10_h`, `cifar10_corrupted`,
`civil_comments`), reading archives with Python's standard library and passing images as encoded
bytes: what they write is read by `tensorflow_datasets.builder(name)` too. Each takes its archives
from the folder of manual downloads. The modules import tensorflow-datasets, so import them where it
is installed.
"""
