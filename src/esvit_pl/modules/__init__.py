from esvit_pl.modules.pretrain import NonFiniteLoss, Pretrainer
