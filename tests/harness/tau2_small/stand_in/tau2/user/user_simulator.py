class UserSimulator:
    def __init__(self, llm, instructions, tools):
        self.system_prompt = f"You are a reader. {instructions}"
