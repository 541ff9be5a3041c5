"""The bus between processes, over Redis. Nothing is stored there that a process depends on."""
