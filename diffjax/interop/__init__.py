"""Foreign weights <-> our trees, without torch.

    config.json ----> a Linen module (networks/), named as the network it equals ----> shapes
    *.safetensors --> tensors --- one mechanical rule of names and layouts, both ways (_keys) ---> params
"""
