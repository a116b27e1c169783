"""The server's HTTP: routes, bodies, errors, pages."""
