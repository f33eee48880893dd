"""Reads mathematics as models and answer keys write it, LaTeX or plain, into expressions."""

from __future__ import annotations

import re
from fractions import Fraction

from oss_tools.harness.expressions import CONSTANTS, Expression, NotMathematics

LONGEST = 2000  # characters; an answer that is longer is not a formula
DEEPEST = 40  # nested groups


GREEK = re.findall(
    r"\w+",
    """alpha beta gamma delta epsilon varepsilon zeta eta theta vartheta iota kappa lambda mu nu xi rho sigma tau upsilon phi
    varphi chi psi omega Gamma Delta Theta Lambda Xi Sigma Phi Psi Omega""",
)
FUNCTIONS = re.findall(
    r"\w+",
    """sin cos tan cot sec csc arcsin arccos arctan sinh cosh tanh log ln lg exp abs floor ceil min max gcd lcm sqrt cbrt""",
)
SPACES = re.compile(
    r"\\[,;:! ]|\\(?:quad|qquad|displaystyle|textstyle|limits|mathstrut)(?![A-Za-z])|~|[\s\u00a0\u2009\u202f]"
)
NUMBER = re.compile(r"\d{1,3}(?:(?:,|\{,\}|\\,|\\!|,\\!|\u202f|\u2009|')\d{3})+(?!\d)(?:\.\d+)?|\d+(?:\.\d*)?|\.\d+")
TOKEN = re.compile(rf"(?P<number>{NUMBER.pattern})|(?P<command>\\[A-Za-z]+|\\.)|(?P<word>[A-Za-z]+)|(?P<sign>[^\s])")
UNICODE = {
    "−": "-", "–": "-", "×": r"\times ", "·": r"\cdot ", "⋅": r"\cdot ", "∗": "*", "÷": "/", "∕": "/", "⁄": "/",
    "√": r"\sqrt ", "∛": r"\cbrt ", "π": r"\pi ", "∞": r"\infty ", "≤": r"\le ", "≥": r"\ge ", "≠": r"\ne ",
    "≈": r"\approx ", "∪": r"\cup ", "∩": r"\cap ", "∈": r"\in ", "±": r"\pm ", "°": r"^\circ ", "∅": r"\emptyset ",
    "ℝ": r"\mathbb{R}", "θ": r"\theta ", "α": r"\alpha ", "β": r"\beta ", "γ": r"\gamma ", "λ": r"\lambda ",
    "μ": r"\mu ", "φ": r"\phi ", "ω": r"\omega ", "½": r"\frac{1}{2}", "¼": r"\frac{1}{4}", "¾": r"\frac{3}{4}",
    "⅓": r"\frac{1}{3}", "⅔": r"\frac{2}{3}", "⅛": r"\frac{1}{8}", "⅜": r"\frac{3}{8}", "⅝": r"\frac{5}{8}",
    "⅞": r"\frac{7}{8}", "⌊": r"\lfloor ", "⌋": r"\rfloor ", "⌈": r"\lceil ", "⌉": r"\rceil ", "∣": "|", "′": "'",
    "’": "'",
}  # fmt: skip
SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺", "0123456789-+")
SUBSCRIPTS = str.maketrans("₀₁₂₃₄₅₆₇₈₉", "0123456789")


def plain_latex(text: str) -> str:
    """Text with Unicode mathematics as LaTeX commands, and without the commands that only change how things look."""
    text = re.sub(r"[⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺]+", lambda found: "^{" + found.group().translate(SUPERSCRIPTS) + "}", text)
    text = re.sub(r"[₀₁₂₃₄₅₆₇₈₉]+", lambda found: "_{" + found.group().translate(SUBSCRIPTS) + "}", text)
    text = re.sub(r"(?<=\d)[eE]([-+]?\d+)(?![\w.])", r"\\times 10^{\1}", text)
    text = "".join(UNICODE.get(character, character) for character in text)
    text = re.sub(
        r"\\(?:left|right|bigl|bigr|Bigl|Bigr|biggl|biggr|big|Big|bigg|Bigg)(?![A-Za-z])\s*\.?(?=[^A-Za-z]|$)", "", text
    )
    text = re.sub(r"\\[dtc]frac(?![A-Za-z])", r"\\frac", text)
    return re.sub(r"\\[lr]vert(?![A-Za-z])", "|", text)


def parse_expression(text: str) -> Expression:
    """An expression. Raises NotMathematics."""
    if len(text) > LONGEST:
        raise NotMathematics("too long")
    return _Parser(_tokens(plain_latex(text))).whole()


def _tokens(text: str) -> list[str]:
    """Numbers without separators, commands without a backslash (`\\frac` is "\\frac"), words as known names or letters."""
    tokens: list[str] = []
    position = 0
    while position < len(text):
        space = SPACES.match(text, position)
        if space and not NUMBER.match(text, position):
            position = space.end()
            continue
        found = TOKEN.match(text, position)
        if not found:
            raise NotMathematics(f"{text[position]!r}")
        position = found.end()
        if found.lastgroup == "number":
            tokens.extend(_number_tokens(found.group(), tokens))
        elif found.lastgroup == "word":
            tokens.extend(_word_tokens(found.group()))
        else:
            tokens.append(found.group())
    return tokens


def _number_tokens(number: str, before: list[str]) -> list[str]:
    r"""`\frac12` is a half: after \frac, and after its first argument, a number is taken digit by digit."""
    plain = re.sub(r"[^\d.]", "", number)
    if before and before[-1] == r"\frac" and plain.isdigit() and len(plain) > 1:
        return [plain[0], plain[1], *([plain[2:]] if plain[2:] else [])]
    return [plain]


def _word_tokens(word: str) -> list[str]:
    """A function's or constant's name, letters that stand for a product, or NotMathematics for a word of a language."""
    if word in FUNCTIONS or word in ("pi", "infty"):
        return ["\\" + word]
    if word.lower() in ("inf", "infinity"):
        return [r"\infty"]
    if len(word) <= 2 or any(set(word) <= set(letters) for letters in ("xyz", "abc", "pqr", "xyi", "mnk")):
        return list(word)
    for name in (*FUNCTIONS, "pi"):
        if word.startswith(name) and len(word) - len(name) <= 2:
            return ["\\" + name, *word[len(name) :]]
        if word.endswith(name) and len(word) - len(name) <= 2:
            return [*word[: -len(name)], "\\" + name]
    raise NotMathematics(word)


OPENING = {"(": ")", "[": "]", "{": "}", r"\{": r"\}", "|": "|", r"\lfloor": r"\rfloor", r"\lceil": r"\rceil"}
ENCLOSED = {"|": "abs", r"\lfloor": "floor", r"\lceil": "ceil"}
TIMES = {"*", r"\times", r"\cdot", r"\ast"}
OVER = {"/", r"\div"}
PERCENT = {"%", r"\%"}
LOOKS = {r"\mathrm", r"\mathit", r"\mathbf", r"\mathsf", r"\operatorname", r"\bm", r"\boldsymbol", r"\rm", r"\bf"}


class _Parser:
    """Precedence climbing: sums of products of powers; a product needs no sign between its factors."""

    def __init__(self, tokens: list[str]) -> None:
        self.tokens = [token for token in tokens if token not in LOOKS]
        self.position = 0
        self.depth = 0

    @property
    def ahead(self) -> str:
        return self.tokens[self.position] if self.position < len(self.tokens) else ""

    def take(self, expected: str = "") -> str:
        token = self.ahead
        if not token or (expected and token != expected):
            raise NotMathematics(f"{token or 'the end'} where {expected or 'more'} is expected")
        self.position += 1
        return token

    def whole(self) -> Expression:
        expression = self.sum()
        if self.ahead:
            raise NotMathematics(f"{self.ahead} after an expression")
        return expression

    def sum(self) -> Expression:
        self.depth += 1
        if self.depth > DEEPEST:
            raise NotMathematics("nested too deeply")
        terms = [self.product()]
        while self.ahead in ("+", "-"):
            sign = self.take()
            term = self.product()
            terms.append(term if sign == "+" else Expression("negate", (term,)))
        self.depth -= 1
        return terms[0] if len(terms) == 1 else Expression("add", tuple(terms))

    def product(self) -> Expression:
        if self.ahead in ("-", "+"):
            negative = self.take() == "-"
            factor = self.product()
            return _negated(factor) if negative else factor
        result = self.power()
        while True:
            if self.ahead in TIMES:
                self.take()
                result = Expression("multiply", (result, self.signed_power()))
            elif self.ahead in OVER:
                self.take()
                result = Expression("divide", (result, self.signed_power()))
            elif self.ahead in PERCENT:
                self.take()
                result = Expression("percent", (result,))
            elif self.begins_factor():
                result = self.beside(result)
            else:
                return result

    def signed_power(self) -> Expression:
        if self.ahead == "-":
            self.take()
            return Expression("negate", (self.signed_power(),))
        return self.power()

    def beside(self, left: Expression) -> Expression:
        """Two factors without a sign between them; a whole number before a proper fraction is a mixed number."""
        fraction_ahead = self.ahead == r"\frac"
        right = self.power()
        if right.name == "number":
            raise NotMathematics("two numbers side by side")
        if left.name == "number" and left.value.denominator == 1 and fraction_ahead and _is_proper(right):
            return Expression("add", (left, right))
        return Expression("multiply", (left, right))

    def begins_factor(self) -> bool:
        token = self.ahead
        if not token:
            return False
        if token[0].isdigit() or token.isalpha() or token in ("(", "[", "{", r"\lfloor", r"\lceil"):
            return True
        return token[1:] in (*FUNCTIONS, *GREEK, "pi", "infty", "frac", "binom", "dbinom", "tbinom")

    def power(self) -> Expression:
        base = self.primary()
        while self.ahead in ("!", "^"):
            base = Expression("factorial", (base,)) if self.take() == "!" else self.raised(base)
        return base

    def raised(self, base: Expression) -> Expression:
        degrees = [r"\circ"], ["{", r"\circ", "}"]
        for sign in degrees:
            if self.tokens[self.position : self.position + len(sign)] == sign:
                self.position += len(sign)
                return Expression("degrees", (base,))
        return Expression("power", (base, self.exponent()))

    def exponent(self) -> Expression:
        if self.ahead == "-":
            self.take()
            return Expression("negate", (self.exponent(),))
        return self.primary()

    def group(self, opening: str = "{") -> Expression:
        self.take(opening)
        expression = self.sum()
        self.take(OPENING[opening])
        return expression

    def argument(self) -> Expression:
        """Of a command: a group, or one token."""
        return self.group() if self.ahead == "{" else self.primary()

    def primary(self) -> Expression:
        token = self.take()
        if token[0].isdigit() or (token[0] == "." and token != "."):  # noqa: S105 (no secret: a token of LaTeX)
            return Expression("number", value=Fraction(token))
        if token.isalpha():
            return self.symbol(token)
        if token in OPENING:
            self.position -= 1
            inside = self.group(token)
            return Expression(ENCLOSED[token], (inside,)) if token in ENCLOSED else inside
        name = token[1:]
        if name == "frac":
            return Expression("divide", (self.argument(), self.argument()))
        if name in ("binom", "dbinom", "tbinom"):
            return Expression("binomial", (self.argument(), self.argument()))
        if name == "sqrt":
            return self.root()
        if name in FUNCTIONS:
            return self.function(name)
        if name in GREEK or name in CONSTANTS:
            return self.symbol(name)
        raise NotMathematics(f"{token} is not known here")

    def symbol(self, name: str) -> Expression:
        if self.ahead == "_":
            self.take()
            closing = (
                self.tokens.index("}", self.position) if self.ahead == "{" and "}" in self.tokens[self.position :] else -1
            )
            taken = self.tokens[self.position + 1 : closing] if closing >= 0 else [self.ahead]
            self.position = closing + 1 if closing >= 0 else self.position + 1
            name += "_" + "".join(taken)
        return Expression("symbol", symbol=name)

    def root(self) -> Expression:
        if self.ahead != "[":
            return Expression("root", (self.argument(),))
        degree = self.group("[")
        return Expression("root", (self.argument(), degree))

    def function(self, name: str) -> Expression:
        r"""\sin^2 x, \log_2 8, \max(1, 2); without brackets the argument is the product that follows."""
        exponent = base = None
        while self.ahead in ("^", "_"):
            if self.take() == "^":
                exponent = self.exponent()
            else:
                base = self.argument()
        arguments = self.arguments()
        if base is not None and name == "log":
            arguments.append(base)
        result = Expression(name, tuple(arguments))
        if exponent is None:
            return result
        inverse = exponent.name == "negate" and exponent.arguments[0].value == 1
        if inverse and name in ("sin", "cos", "tan"):
            return Expression("arc" + name, tuple(arguments))
        return Expression("power", (result, exponent))

    def arguments(self) -> list[Expression]:
        if self.ahead in ("(", "{", "["):
            opening = self.take()
            inside = [self.sum()]
            while self.ahead == ",":
                self.take()
                inside.append(self.sum())
            self.take(OPENING[opening])
            return inside
        factor = self.signed_power()
        while self.begins_factor() and self.ahead[1:] not in FUNCTIONS:
            factor = self.beside(factor)
        return [factor]


def _negated(expression: Expression) -> Expression:
    """A percentage stays one at the top, where it is looked for."""
    if expression.name == "percent":
        return Expression("percent", (_negated(expression.arguments[0]),))
    return Expression("negate", (expression,))


def _is_proper(expression: Expression) -> bool:
    """Whether it is a fraction of two whole numbers with the smaller one above."""
    if expression.name != "divide" or any(argument.name != "number" for argument in expression.arguments):
        return False
    above, below = (argument.value for argument in expression.arguments)
    return above.denominator == below.denominator == 1 and 0 < above < below
