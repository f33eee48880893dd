"""Models behind HTTP: the APIs of OpenAI and Anthropic, and a page. One file per API in `api/`; `app.py` finds them."""
