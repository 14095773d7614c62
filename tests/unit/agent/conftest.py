"""Being here, it lets tests in the folders below import what helps the tests of this one (made_layers, fake_node)."""
