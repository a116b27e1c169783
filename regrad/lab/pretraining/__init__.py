"""The lab's base model from nothing."""
