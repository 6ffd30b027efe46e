"""Products, attention and activations of frozen models on the CPU, in C++ that is built when it is first needed.

A batch of rollouts is a few dozen rows against all weights of the model, too few for a general library: it rearranges the
weights in every call, for little work. Here they are stored in the order of their use. And what a row gets depends on that row
alone, to the bit, so that results do not change with the batch.

    library.py       builds and loads the C++ (one second, once per machine); None where that cannot be
    products.py      linear layers: ``products.cpp``
    elementwise.py   activations: ``elementwise.cpp``
"""
