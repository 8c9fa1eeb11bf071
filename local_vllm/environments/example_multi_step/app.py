"""Calls that depend on each other: an order names its customer and articles, those have discounts and prices.

The reward is for looking up all that the answer needs, and for the right answer in the end.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, TypeVar

from pydantic import BaseModel

from local_vllm.environments import ResourcesServer, Rollout, ToolError, Verdict, tool

Found = TypeVar("Found")


class Line(BaseModel):
    """One line of an order."""

    article: str
    quantity: int


class Order(BaseModel):
    """Who ordered what."""

    customer: str
    lines: list[Line]


class OrderRow(BaseModel):
    """What a row has to hold: the shop that the tools look into, and the order that is asked about."""

    orders: dict[str, Order]
    prices_cents: dict[str, int]
    discounts_percent: dict[str, int]
    order_id: str


@dataclass
class Shop:
    """What the tools of one rollout share."""

    orders: dict[str, Order] = field(default_factory=dict)
    prices_cents: dict[str, int] = field(default_factory=dict)
    discounts_percent: dict[str, int] = field(default_factory=dict)
    submitted_cents: int | None = None


class ExampleMultiStep(ResourcesServer):
    Row = OrderRow
    Session = Shop

    async def seed_session(self, row: OrderRow, session: Shop) -> None:
        """The shop of the row is the one that the tools see."""
        session.orders = row.orders
        session.prices_cents = row.prices_cents
        session.discounts_percent = row.discounts_percent

    @tool
    async def get_order(self, order_id: str, session: Shop) -> Order:
        """Look up an order: its customer, and the article and quantity of each line.

        Args:
            order_id: Number of the order, such as A-17.
        """
        return _found(session.orders, order_id, "order")

    @tool
    async def get_price(self, article: str, session: Shop) -> dict[str, Any]:
        """Look up what one piece of an article costs, in cents.

        Args:
            article: Name of the article, as it stands in the order.
        """
        return {"article": article, "price_cents": _found(session.prices_cents, article, "article")}

    @tool
    async def get_discount(self, customer: str, session: Shop) -> dict[str, Any]:
        """Look up a customer's discount on a whole order, in percent.

        Args:
            customer: Name of the customer, as it stands in the order.
        """
        percent = _found(session.discounts_percent, customer, "customer")
        return {"customer": customer, "discount_percent": percent}

    @tool
    async def submit_total(self, total_cents: int, session: Shop) -> str:
        """Submit the total of the order after the discount. The last submission counts.

        Args:
            total_cents: The total in cents, rounded to a whole cent.
        """
        session.submitted_cents = total_cents
        return "submitted"

    async def verify(self, rollout: Rollout[OrderRow, Shop]) -> Verdict:
        """1 if everything was looked up and the total is right."""
        expected = _total_cents(rollout.row)
        submitted = rollout.session.submitted_cents
        missing = sorted(_needed(rollout.row) - _made(rollout))
        return Verdict(
            reward=submitted == expected and not missing,
            expected_total_cents=expected,
            submitted_total_cents=submitted,
            missing_calls=missing,
        )


def _found(table: dict[str, Found], name: str, kind: str) -> Found:
    if name not in table:
        raise ToolError(f"There is no {kind} {name!r}.")
    return table[name]


def _needed(row: OrderRow) -> set[str]:
    """The calls without which the answer is a guess, as `name(argument)`."""
    order = row.orders[row.order_id]
    prices = {f"get_price({line.article})" for line in order.lines}
    return {f"get_order({row.order_id})", f"get_discount({order.customer})"} | prices


def _made(rollout: Rollout[OrderRow, Shop]) -> set[str]:
    return {
        f"{call.name}({argument})" for call in rollout.calls for argument in (call.arguments or {}).values()
    }


def _total_cents(row: OrderRow) -> int:
    order = row.orders[row.order_id]
    full = sum(row.prices_cents[line.article] * line.quantity for line in order.lines)
    percent = 100 - row.discounts_percent[order.customer]
    return (full * percent + 50) // 100
