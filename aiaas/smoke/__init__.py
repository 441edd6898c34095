"""The smoke test: does a gateway do what it promises, seen from outside?"""
