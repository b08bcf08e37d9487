"""The papers that a report can cite."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Reference:
    """A paper: its label in a text, and its entry in the list."""

    label: str
    entry: str
    url: str


REFERENCES: dict[str, Reference] = {
    "akiba2019": Reference(
        "Akiba et al., 2019",
        "Akiba, T., Sano, S., Yanase, T., Ohta, T., Koyama, M. Optuna: A next-generation hyperparameter optimization "
        "framework. KDD 2019.",
        "https://arxiv.org/abs/1907.10902",
    ),
    "bergstra2011": Reference(
        "Bergstra et al., 2011",
        "Bergstra, J., Bardenet, R., Bengio, Y., Kégl, B. Algorithms for hyper-parameter optimization. NIPS 2011.",
        "https://papers.nips.cc/paper/4443-algorithms-for-hyper-parameter-optimization",
    ),
    "bergstra2012": Reference(
        "Bergstra and Bengio, 2012",
        "Bergstra, J., Bengio, Y. Random search for hyper-parameter optimization. Journal of Machine Learning Research "
        "13, 2012.",
        "https://www.jmlr.org/papers/v13/bergstra12a.html",
    ),
    "cawley2010": Reference(
        "Cawley and Talbot, 2010",
        "Cawley, G. C., Talbot, N. L. C. On over-fitting in model selection and subsequent selection bias in "
        "performance evaluation. Journal of Machine Learning Research 11, 2010.",
        "https://www.jmlr.org/papers/v11/cawley10a.html",
    ),
    "deb2002": Reference(
        "Deb et al., 2002",
        "Deb, K., Pratap, A., Agarwal, S., Meyarivan, T. A fast and elitist multiobjective genetic algorithm: NSGA-II. "
        "IEEE Transactions on Evolutionary Computation 6(2), 2002.",
        "https://doi.org/10.1109/4235.996017",
    ),
    "efron1979": Reference(
        "Efron, 1979",
        "Efron, B. Bootstrap methods: another look at the jackknife. The Annals of Statistics 7(1), 1979.",
        "https://doi.org/10.1214/aos/1176344552",
    ),
    "falkner2018": Reference(
        "Falkner et al., 2018",
        "Falkner, S., Klein, A., Hutter, F. BOHB: Robust and efficient hyperparameter optimization at scale. ICML "
        "2018.",
        "https://arxiv.org/abs/1807.01774",
    ),
    "golovin2017": Reference(
        "Golovin et al., 2017",
        "Golovin, D., Solnik, B., Moitra, S., Kochanski, G., Karro, J., Sculley, D. Google Vizier: A service for "
        "black-box optimization. KDD 2017.",
        "https://doi.org/10.1145/3097983.3098043",
    ),
    "guo2017": Reference(
        "Guo et al., 2017",
        "Guo, C., Pleiss, G., Sun, Y., Weinberger, K. Q. On calibration of modern neural networks. ICML 2017.",
        "https://arxiv.org/abs/1706.04599",
    ),
    "holm1979": Reference(
        "Holm, 1979",
        "Holm, S. A simple sequentially rejective multiple test procedure. Scandinavian Journal of Statistics 6(2), "
        "1979.",
        "https://www.jstor.org/stable/4615733",
    ),
    "li2018": Reference(
        "Li et al., 2018",
        "Li, L., Jamieson, K., DeSalvo, G., Rostamizadeh, A., Talwalkar, A. Hyperband: A novel bandit-based approach "
        "to hyperparameter optimization. Journal of Machine Learning Research 18, 2018.",
        "https://arxiv.org/abs/1603.06560",
    ),
    "li2020": Reference(
        "Li et al., 2020",
        "Li, L., Jamieson, K., Rostamizadeh, A., Gonina, E., Ben-tzur, J., Hardt, M., Recht, B., Talwalkar, A. A "
        "system for massively parallel hyperparameter tuning. MLSys 2020.",
        "https://arxiv.org/abs/1810.05934",
    ),
    "owen1998": Reference(
        "Owen, 1998",
        "Owen, A. B. Scrambling Sobol' and Niederreiter-Xing points. Journal of Complexity 14(4), 1998.",
        "https://doi.org/10.1006/jcom.1998.0487",
    ),
    "snoek2012": Reference(
        "Snoek et al., 2012",
        "Snoek, J., Larochelle, H., Adams, R. P. Practical Bayesian optimization of machine learning algorithms. NIPS "
        "2012.",
        "https://arxiv.org/abs/1206.2944",
    ),
    "wilcoxon1945": Reference(
        "Wilcoxon, 1945",
        "Wilcoxon, F. Individual comparisons by ranking methods. Biometrics Bulletin 1(6), 1945.",
        "https://doi.org/10.2307/3001968",
    ),
    "wilson1927": Reference(
        "Wilson, 1927",
        "Wilson, E. B. Probable inference, the law of succession, and statistical inference. Journal of the American "
        "Statistical Association 22(158), 1927.",
        "https://doi.org/10.1080/01621459.1927.10502953",
    ),
}
