from types import SimpleNamespace


class EnvironmentEvaluator:
    @staticmethod
    def calculate_reward(environment_constructor, task, full_trajectory):
        made = [call for message in full_trajectory for call in message.get("tool_calls") or []]
        states = []
        for calls in (made, task.evaluation_criteria.actions):
            world = environment_constructor()
            start = task.initial_state
            world.set_state(None, start and start.initialization_actions, [])
            states.append(world.played([{"name": c["name"], "arguments": c["arguments"]} for c in calls]))
        return SimpleNamespace(reward=float(states[0] == states[1]))
