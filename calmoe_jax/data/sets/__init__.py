"""The data sets that tasks are made of: what there is, where it lies, and how it is brought.

>>> from calmoe_jax.data.sets import SETS
>>> SETS["mnist"].size
'11.6 MB'
>>> SETS["mnist"].is_here(None)
False
"""

from calmoe_jax.data.sets.catalogue import SETS as SETS
from calmoe_jax.data.sets.catalogue import DataSet as DataSet
from calmoe_jax.data.sets.catalogue import how_to_get as how_to_get
from calmoe_jax.data.sets.folder import data_folder as data_folder
from calmoe_jax.data.sets.prepare import prepare as prepare
