"""The command `cpsl`: settings, recipes, stages, evaluation, prediction, export, report.

Needs the extra `cpsl[train]`.
"""
