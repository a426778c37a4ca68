"""What train.py, the three files beside it and the other scripts lean on. Nothing in here imports them."""
