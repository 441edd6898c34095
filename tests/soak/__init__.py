"""Does anything grow or stay behind when the gateway runs for long with every kind of fault?"""
