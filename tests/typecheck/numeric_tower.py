"""beartype as the type system has it: an int is a float (PEP 484). The jaxtyping hook checks shapes with this."""

from beartype import BeartypeConf
from beartype import beartype as _beartype

beartype = _beartype(conf=BeartypeConf(is_pep484_tower=True))
