"""The version of all JSON that commands and servers print (docs/json.md)."""

SCHEMA_VERSION = 2
