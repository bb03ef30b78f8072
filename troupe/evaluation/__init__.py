"""Answers, their scores, and the tables that compare models."""
