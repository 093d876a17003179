"""The Backtrader broker, its order worker and its journal."""
