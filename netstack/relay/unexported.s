// Empty: with it the compiler takes functions without a body, which linkname has elsewhere.
