"""Does anything grow or stay behind when the gateway runs for long under everything that goes wrong?"""
