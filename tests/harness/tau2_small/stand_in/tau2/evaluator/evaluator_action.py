from types import SimpleNamespace


class ActionEvaluator:
    @staticmethod
    def calculate_reward(task, full_trajectory):
        made = [(c["name"], c["arguments"]) for m in full_trajectory for c in m.get("tool_calls") or []]
        return SimpleNamespace(
            reward=float(all((a["name"], a["arguments"]) in made for a in task.evaluation_criteria.actions))
        )
