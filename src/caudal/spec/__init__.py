"""What users write: YAML files → domain values, with line numbers in every error; and their JSON Schema."""

from caudal.spec.dump import dump
from caudal.spec.files import Spec, check, from_dict, load, parse, to_dict
from caudal.spec.schema import schema

__all__ = ["Spec", "check", "dump", "from_dict", "load", "parse", "schema", "to_dict"]
