"""Package cream.v1; its modules are made by `dry_work/proto/cream/write_modules.py`."""
