"""One file per API. Each has `routes(state) -> list[Route]`."""
