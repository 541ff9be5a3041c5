"""The bus between processes, over Redis; nothing is kept there that a process rests on."""
