"""The REST API: routes over the use cases of ``app``, and the server that runs them."""
