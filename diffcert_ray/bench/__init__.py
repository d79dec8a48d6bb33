"""What `diffcert bench` measures: the bare network, the engine, its parts, memory, floors."""
