"""Where attention stops being gradient descent: trained linear layers against the constructed one."""
