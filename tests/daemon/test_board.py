"""What is posted while somebody is about to wait wakes him."""

import asyncio

from agent.daemon.board import Board


async def test_a_turn_is_the_next_one_from_when_it_was_asked_for():
    """A post between the asking and the task's first step is no lost one."""
    board = Board(0)
    turn = asyncio.create_task(board.turned())
    board.post(1)
    async with asyncio.timeout(5):
        await turn
