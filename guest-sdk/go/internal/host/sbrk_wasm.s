// A function without a body, which is the runtime's, takes a file in assembly beside it.
