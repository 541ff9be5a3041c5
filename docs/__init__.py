"""The pages that are made of tables in the code."""
