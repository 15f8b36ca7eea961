#!/bin/sh
# The runs behind docs/smaraad.md. Usage: benchmarks/smaraad_study.sh TEACHER.pt DATA_DIR [JOBS]
#
# TEACHER.pt: weights of a robust WRN-10-2 for CIFAR-10; DATA_DIR: CIFAR-10. Some two hours on two CPU cores; what is
# done is skipped, so it can be stopped and started. Records go to results/smaraad.
set -eu
teacher=$1 data=$2 jobs=${3:-2}

cifar() {
    adbench run --results results/smaraad --data-dir "$data" --dataset cifar10 --teacher "wrn-10-2@$teacher" \
        --device cpu --jobs "$jobs" --seeds 3 --config benchmarks/smaraad_cifar10.toml "$@" || diverged
}
digits() {
    adbench run --results results/smaraad --dataset digits --device cpu --jobs "$jobs" --preset digits \
        --config benchmarks/smaraad_digits.toml "$@" || diverged
}
# A run that diverges leaves a record with its reason and exit code 1, and is a result.
diverged() { [ $? -eq 1 ]; }
gamma() { echo --set "hyper.smaraad.gamma=$1" --set "hyper.smaraad-pp.gamma=$1" --set "hyper.slack.gamma=$1"; }

# R4 and R6: the paper's gamma and a soft one, each with the maps normalised and as Eq. 7 prints them.
cifar --methods smaraad $(gamma 1000)
cifar --methods smaraad $(gamma 10)
cifar --methods smaraad $(gamma 1000) --set hyper.smaraad.cam_norm=none
# R6 where it was claimed: ResNet-18, the first 40 updates.
for norm in minmax none; do
    cifar --methods smaraad --student rn18 $(gamma 1000) --set hyper.smaraad.cam_norm=$norm --set train.epochs=2 \
        --set data.train_images=1280 --set data.val_images=64 --set train.attack_steps=1 --set train.val_steps=1 \
        --set eval.images=64 --set 'eval.attacks=["fgsm"]'
done
# The same questions on digits, where training is long enough to finish, and Figure 4's ablation.
for g in 3 10 30 100 1000; do digits --methods smaraad --seeds 3 $(gamma $g); done
digits --methods kd,kd-align,slack --seeds 3 $(gamma 10)
digits --methods smaraad --seeds 3 $(gamma 1000) --set train.epochs=100
digits --methods smaraad --seeds 3 $(gamma 10) --set hyper.smaraad.cam_norm=none
# R10: minus rho and the printed plus.
cifar --methods smaraad-pp $(gamma 10)
cifar --methods smaraad-pp $(gamma 10) --set hyper.smaraad-pp.self_rho_sign=1
cifar --methods smaraad $(gamma 10) --set hyper.smaraad.cam_norm=none
