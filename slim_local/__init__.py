"""Names of the public code's submodule SLiM that its quick start imports. See docs/reference-api.md.

`utils` has no `__init__.py`, so that with this folder on the path, as in the quick start, `import utils` still finds
any other module or package of that name.
"""
