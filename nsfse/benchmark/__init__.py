"""Methods compared on equal terms: blocks, equal minutes, significance, tables, and recipes that reproduce a result."""
