"""The study of hybrid objectives: tables, the runs behind them, and the document made from the rows."""
