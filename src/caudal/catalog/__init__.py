"""What can be rented: machine types, accelerators and prices, each with source and date."""
