"""Small worlds with a state, whose tools a model calls in conversations of several turns: files, letters, tasks, a shop,
arithmetic.

A world is a class; its public methods are the tools, described by their docstrings and annotations, and its public attributes
are its state, by which a conversation is scored. What cannot be done raises ToolError, of which the model is told.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Annotated, Any, get_args, get_origin, get_type_hints

from oss_tools.chat.tools.base import ToolError
from oss_tools.chat.tools.calculator import evaluate, written

TYPES = {str: "string", int: "integer", float: "number", bool: "boolean", list: "array"}
MOST_FILES = 200
MOST_TEXT = 100_000  # characters of a file


class Files:
    """Files in folders.

    Attributes:
        files: path → text. A folder is there as long as a file is in it.
    """

    def __init__(self, files: Mapping[str, str] | None = None) -> None:
        self.files = dict(files or {})

    def list_files(self, folder: Annotated[str, "Folder, as in reports or reports/2024; empty for all"] = "") -> list[str]:
        """Lists the paths of the files in a folder and below"""
        prefix = folder.strip("/")
        return sorted(path for path in self.files if not prefix or path.startswith(prefix + "/"))

    def read_file(self, path: Annotated[str, "Path of the file"]) -> str:
        """Reads a file"""
        return self.files[self._there(path)]

    def write_file(self, path: Annotated[str, "Path of the file"], text: Annotated[str, "New text"]) -> str:
        """Writes a file; what was in it is lost"""
        if len(text) > MOST_TEXT or (path not in self.files and len(self.files) >= MOST_FILES):
            raise ToolError("no room left")
        if not path.strip("/"):
            raise ToolError("a path is needed")
        self.files[path.strip("/")] = text
        return "written"

    def append_line(self, path: Annotated[str, "Path of the file"], line: Annotated[str, "Line to add"]) -> str:
        """Adds a line at the end of a file"""
        text = self.files[self._there(path)]
        return self.write_file(path, text + ("\n" if text and not text.endswith("\n") else "") + line)

    def move_file(self, path: Annotated[str, "Path of the file"], to: Annotated[str, "New path"]) -> str:
        """Moves or renames a file"""
        if to.strip("/") in self.files:
            raise ToolError(f"{to} exists already")
        self.files[to.strip("/")] = self.files.pop(self._there(path))
        return "moved"

    def copy_file(self, path: Annotated[str, "Path of the file"], to: Annotated[str, "Path of the copy"]) -> str:
        """Copies a file"""
        if to.strip("/") in self.files:
            raise ToolError(f"{to} exists already")
        return self.write_file(to, self.files[self._there(path)])

    def delete_file(self, path: Annotated[str, "Path of the file"]) -> str:
        """Deletes a file"""
        del self.files[self._there(path)]
        return "deleted"

    def find_text(self, text: Annotated[str, "Text to look for"]) -> list[str]:
        """Finds the paths of the files that hold a text, whatever its capitals"""
        return sorted(path for path, content in self.files.items() if text.lower() in content.lower())

    def _there(self, path: str) -> str:
        if path.strip("/") not in self.files:
            raise ToolError(f"there is no file {path}")
        return path.strip("/")


class Letters:
    """An inbox, and what was sent.

    Attributes:
        inbox: letters with number, sender, subject, text.
        sent: letters with to, subject, text.
    """

    def __init__(self, inbox: list[dict[str, Any]] | None = None) -> None:
        self.inbox = [dict(letter) for letter in inbox or []]
        self.sent: list[dict[str, str]] = []

    def list_letters(self) -> list[dict[str, Any]]:
        """Lists the letters in the inbox: number, sender, subject"""
        return [{name: letter[name] for name in ("number", "sender", "subject")} for letter in self.inbox]

    def read_letter(self, number: Annotated[int, "Number of the letter"]) -> str:
        """Reads a letter of the inbox"""
        return str(self._letter(number)["text"])

    def send_letter(
        self, to: Annotated[str, "Recipient"], subject: Annotated[str, "Subject"], text: Annotated[str, "Text"]
    ) -> str:
        """Sends a letter"""
        self.sent.append({"to": to, "subject": subject, "text": text})
        return "sent"

    def delete_letter(self, number: Annotated[int, "Number of the letter"]) -> str:
        """Deletes a letter of the inbox"""
        self.inbox.remove(self._letter(number))
        return "deleted"

    def _letter(self, number: int) -> dict[str, Any]:
        found = [letter for letter in self.inbox if letter["number"] == number]
        if not found:
            raise ToolError(f"there is no letter {number}")
        return found[0]


class Tasks:
    """Things to do.

    Attributes:
        tasks: title → {due, done}.
    """

    def __init__(self, tasks: Mapping[str, Mapping[str, Any]] | None = None) -> None:
        self.tasks = {title: dict(task) for title, task in (tasks or {}).items()}

    def add_task(self, title: Annotated[str, "Title"], due: Annotated[str, "Day, as in 2025-03-01"]) -> str:
        """Adds a task"""
        if title in self.tasks:
            raise ToolError(f"there is a task {title!r} already")
        self.tasks[title] = {"due": due, "done": False}
        return "added"

    def list_tasks(self, open_only: Annotated[bool, "Whether to leave out those that are done"] = False) -> dict[str, Any]:
        """Lists the tasks with their days"""
        return {title: task for title, task in self.tasks.items() if not (open_only and task["done"])}

    def finish_task(self, title: Annotated[str, "Title"]) -> str:
        """Marks a task as done"""
        self._task(title)["done"] = True
        return "done"

    def move_task(self, title: Annotated[str, "Title"], due: Annotated[str, "New day, as in 2025-03-01"]) -> str:
        """Changes a task's day"""
        self._task(title)["due"] = due
        return "moved"

    def _task(self, title: str) -> dict[str, Any]:
        if title not in self.tasks:
            raise ToolError(f"there is no task {title!r}")
        return self.tasks[title]


class Shop:
    """A shop with a basket and a purse.

    Attributes:
        prices: of what is sold; `stock` how many there are.
        basket: what is to be bought; `orders` what was.
        money: left.
    """

    def __init__(self, prices: Mapping[str, float], stock: Mapping[str, int], money: float) -> None:
        self.prices, self.stock, self.money = dict(prices), dict(stock), money
        self.basket: dict[str, int] = {}
        self.orders: list[dict[str, int]] = []

    def look_up(self, article: Annotated[str, "Name of the article"]) -> dict[str, Any]:
        """Tells an article's price and how many there are"""
        return {"price": self.prices[self._sold(article)], "stock": self.stock[article]}

    def put_in_basket(self, article: Annotated[str, "Name of the article"], number: Annotated[int, "How many"]) -> str:
        """Puts articles into the basket"""
        wanted = self.basket.get(self._sold(article), 0) + number
        if number < 1 or wanted > self.stock[article]:
            raise ToolError(f"there are {self.stock[article]} of {article}")
        self.basket[article] = wanted
        return "in the basket"

    def empty_basket(self) -> str:
        """Takes everything out of the basket"""
        self.basket = {}
        return "empty"

    def total(self) -> float:
        """Tells what the basket costs"""
        return round(sum(self.prices[article] * number for article, number in self.basket.items()), 2)

    def purse(self) -> float:
        """Tells how much money is left"""
        return self.money

    def order(self) -> str:
        """Buys what is in the basket"""
        cost = self.total()
        if not self.basket or cost > self.money:
            raise ToolError("the basket is empty" if not self.basket else f"it costs {cost}, and {self.money} is left")
        self.money = round(self.money - cost, 2)
        for article, number in self.basket.items():
            self.stock[article] -= number
        self.orders.append(self.basket)
        self.basket = {}
        return f"ordered for {cost}"

    def _sold(self, article: str) -> str:
        if article not in self.prices:
            raise ToolError(f"{article} is not sold here")
        return article


class Arithmetic:
    """A calculator; it has no state."""

    def calculate(self, expression: Annotated[str, "As in (3 + 4) * 2"]) -> str:
        """Evaluates an arithmetic expression"""
        return written(evaluate(expression))


WORLDS: dict[str, type] = {world.__name__: world for world in (Files, Letters, Tasks, Shop, Arithmetic)}


def tools_of_world(world: type) -> list[dict[str, Any]]:
    """Its public methods as function schemas: name, description, parameters."""
    methods = [
        (name, method) for name, method in vars(world).items() if not name.startswith("_") and inspect.isfunction(method)
    ]
    return [_schema(name, method) for name, method in methods]


def _schema(name: str, method: Callable[..., Any]) -> dict[str, Any]:
    hints = get_type_hints(method, include_extras=True)
    parameters = [p for p in inspect.signature(method).parameters.values() if p.name != "self"]
    properties = {}
    for parameter in parameters:
        kind, about = get_args(hints[parameter.name])
        properties[parameter.name] = {"type": TYPES[get_origin(kind) or kind], "description": about}
        if parameter.default is not inspect.Parameter.empty:
            properties[parameter.name]["default"] = parameter.default
    required = [p.name for p in parameters if p.default is inspect.Parameter.empty]
    schema = {"type": "object", "properties": properties, "required": required}
    return {"name": name, "description": inspect.getdoc(method), "parameters": schema}
