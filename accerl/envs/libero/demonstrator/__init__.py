"""A demonstrator for LIBERO that plans from a task's goal and the simulator's state.

goal predicates -> planner -> skills (pick, place, open, close, turn, push) -> motions -> actions
"""
