"""A library, whose reader has a card at home that must be valid."""

import copy
import json
import os
from pathlib import Path


class Schema:
    """A tool as a function schema."""

    def __init__(self, name, about, *parameters):
        properties = {parameter: {"type": "string"} for parameter in parameters}
        wanted = {"type": "object", "properties": properties, "required": list(parameters)}
        function = {"name": name, "description": about, "parameters": wanted}
        self.openai_schema = {"type": "function", "function": function}


class Result(dict):
    """A tool's message."""

    def model_dump(self, mode):
        return dict(self)


class Library:
    """Books that are lent, and the reader's side."""

    user_tools = True

    def __init__(self):
        folder = Path(os.environ["TAU2_DATA_DIR"]) / "tau2" / "domains" / "library"
        self.state = json.loads((folder / "db.json").read_text())
        self.policy = (folder / "policy.md").read_text()

    def get_policy(self):
        return self.policy

    def get_tools(self):
        return [Schema("lend", "Lends a book", "reader", "title"), Schema("take_back", "Takes a book back", "title")]

    def get_user_tools(self, include=None):
        return [Schema("renew_card", "Renews the reader's card")]

    def set_state(self, initialization_data, initialization_actions, message_history):
        for action in initialization_actions or []:
            getattr(self, action["func_name"])(**action["arguments"])

    def get_response(self, call):
        try:
            result, error = getattr(self, call["name"])(**call["arguments"]), False
        except (KeyError, ValueError, TypeError, AttributeError) as failure:
            result, error = f"Error: {failure}", True
        return Result(id=call["id"], role="tool", content=result, requestor=call["requestor"], error=error)

    def lend(self, reader, title):
        if not self.state["card"]:
            raise ValueError("the card is not valid")
        if title not in self.state["books"]:
            raise ValueError("there is no such book")
        self.state["books"][title] = reader
        return "lent"

    def take_back(self, title):
        self.state["books"][title] = None
        return "taken back"

    def renew_card(self):
        self.state["card"] = True
        return "renewed"

    def lose_card(self):
        self.state["card"] = False

    def crash(self):
        os._exit(7)

    def played(self, calls):
        """The state after calls."""
        for call in calls:
            self.get_response({"id": "", "requestor": "", **call})
        return copy.deepcopy(self.state)
