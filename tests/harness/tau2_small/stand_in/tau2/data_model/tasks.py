from types import SimpleNamespace


class Kind(str):
    @property
    def value(self):
        return str(self)


class Task:
    @staticmethod
    def model_validate(raw):
        start, criteria = raw.get("initial_state"), raw["evaluation_criteria"]
        return SimpleNamespace(
            user_scenario=raw["user_scenario"]["instructions"],
            initial_state=start
            and SimpleNamespace(initialization_data=None, initialization_actions=start["initialization_actions"]),
            evaluation_criteria=SimpleNamespace(
                reward_basis=[Kind(kind) for kind in criteria["reward_basis"]],
                actions=criteria["actions"],
                communicate_info=criteria.get("communicate_info") or [],
            ),
        )
