"""The paper's comparisons as tables of arms, their runs, and the judgement over seeds and examples."""
