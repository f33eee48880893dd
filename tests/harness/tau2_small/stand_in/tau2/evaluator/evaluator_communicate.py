from types import SimpleNamespace


class CommunicateEvaluator:
    @staticmethod
    def calculate_reward(task, full_trajectory):
        said = " ".join(m["content"] or "" for m in full_trajectory if m["role"] == "assistant")
        return SimpleNamespace(reward=float(all(word in said for word in task.evaluation_criteria.communicate_info)))
