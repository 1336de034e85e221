"""How good an order is: measures, their uncertainty, the report, and the gate that reads it."""
