"""What bank_store.py is made of: one file for each thing that is measured."""
