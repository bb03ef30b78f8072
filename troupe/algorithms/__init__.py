"""The mathematics: packing, log-probabilities, advantages, KL estimators, losses. Tensors in, tensors out.

Letters: G groups, B branches, N branch tokens in canonical order (group, branch, token). `branch_ids [N]` says which
branch a token belongs to, `group_ids [B]` which group a branch belongs to.
"""
