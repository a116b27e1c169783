"""The Ray Serve application: retriever, bank loader, generator, gateway, and the builder that composes them."""
