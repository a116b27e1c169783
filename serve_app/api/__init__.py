"""The HTTP interface: what requests and answers look like, what errors look like, and the routes."""
